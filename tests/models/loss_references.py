# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""The losses as their papers and MMSegmentation's documentation define them, pixel by pixel.

In float64 with loops, from scores (N, C, H, W) and labels (N, H, W) as NumPy arrays. ``valid`` says
which pixels count. One output scores class 1.
"""

from __future__ import annotations

import math

import numpy as np


def sigmoid(value: float) -> float:
    return 1 / (1 + math.exp(-value))


def softmax(logits) -> list[float]:
    """Class probabilities of the logits of a pixel; one logit is class 1's against 0."""
    logits = [0.0, *logits] if len(logits) == 1 else logits
    powers = [math.exp(value) for value in logits]
    return [power / sum(powers) for power in powers]


def places(valid):
    return list(zip(*np.nonzero(valid), strict=True))


def channels(scores):
    """Pairs of a channel and its class."""
    return [(0, 1)] if scores.shape[1] == 1 else [(c, c) for c in range(scores.shape[1])]


def pair(weights):
    """Weights of classes 0 and 1 for one output."""
    return [1.0, *weights] if len(weights) == 1 else weights


def cross_entropy(scores, labels, valid, weights=None, avg_non_ignore=False, reduction="mean"):
    if weights is not None and scores.shape[1] == 1:
        weights = pair(weights)
    weights = weights or [1.0] * max(scores.shape[1], 2)
    map_ = np.zeros(labels.shape)
    count = 0.0
    for n, y, x in places(valid):
        label = labels[n, y, x]
        map_[n, y, x] = -weights[label] * math.log(softmax(scores[n, :, y, x])[label])
        count += weights[label]
    if set(weights) == {1.0} and not avg_non_ignore:
        count = labels.size
    return reduced(map_, count, reduction)


def sigmoid_cross_entropy(
    scores, labels, valid, weights=None, avg_non_ignore=False, reduction="mean"
):
    map_ = np.zeros(scores.shape)
    for n, y, x in places(valid):
        for channel, class_ in channels(scores):
            chance = sigmoid(scores[n, channel, y, x])
            yes, no = 1.0, 1.0
            if weights is not None and scores.shape[1] == 1:
                no, yes = pair(weights)
            elif weights is not None:
                yes = weights[channel]
            is_class = labels[n, y, x] == class_
            term = -yes * math.log(chance) if is_class else -no * math.log(1 - chance)
            map_[n, channel, y, x] = term
    count = valid.sum() * scores.shape[1] if avg_non_ignore else map_.size
    return reduced(map_, count, reduction)


def focal(scores, labels, valid, gamma=2.0, alpha=0.5, weights=None, reduction="mean"):
    map_ = np.zeros(scores.shape)
    for n, y, x in places(valid):
        for channel, class_ in channels(scores):
            chance = sigmoid(scores[n, channel, y, x])
            is_class = labels[n, y, x] == class_
            a = alpha[channel] if isinstance(alpha, list) else alpha
            right, share = (chance, a) if is_class else (1 - chance, 1 - a)
            weight = 1.0
            if weights is not None:
                weight = (
                    pair(weights)[int(is_class)] if len(channels(scores)) == 1 else weights[channel]
                )
            map_[n, channel, y, x] = -weight * share * (1 - right) ** gamma * math.log(right)
    return reduced(map_, map_.size, reduction)


def ohem(scores, labels, valid, thres=0.7, min_kept=1, weights=None):
    weights = weights or [1.0] * max(scores.shape[1], 2)
    pixels = []
    for n, y, x in places(valid):
        label = labels[n, y, x]
        chance = softmax(scores[n, :, y, x])[label]
        pixels.append((chance, -weights[label] * math.log(chance)))
    pixels.sort()
    kept = [loss for rank, (chance, loss) in enumerate(pixels) if chance < thres or rank < min_kept]
    return sum(kept) / len(kept)


def boundary(scores, labels, valid):
    total = 0.0
    for channel, class_ in channels(scores):
        inside = sum(labels[place] == class_ for place in places(valid))
        outside = valid.sum() - inside
        for n, y, x in places(valid):
            chance = sigmoid(scores[n, channel, y, x])
            if labels[n, y, x] == class_:
                total -= outside / valid.sum() * math.log(chance)
            else:
                total -= inside / valid.sum() * math.log(1 - chance)
    return total / scores.size


def dice(scores, labels, valid, use_sigmoid=True, activate=True, naive=False, eps=1e-3,
         without=(), reduction="mean"):  # fmt: skip
    losses = []
    for n in range(len(scores)):
        overlap = predicted = labelled = 0.0
        for _, y, x in places(valid[n : n + 1]):
            logits = scores[n, :, y, x]
            chances = [sigmoid(s) for s in logits] if use_sigmoid else softmax(logits)
            chances = chances if activate else logits
            classes = channels(scores) if len(chances) == len(logits) else [(0, 0), (1, 1)]
            for channel, class_ in classes:
                if class_ in without:
                    continue
                hit = float(labels[n, y, x] == class_)
                overlap += chances[channel] * hit
                predicted += chances[channel] ** (1 if naive else 2)
                labelled += hit
        if naive:
            losses.append(1 - (2 * overlap + eps) / (predicted + labelled + eps))
        else:
            losses.append(1 - 2 * overlap / (predicted + eps + labelled + eps))
        losses[-1] *= bool(valid[n].any())
    return reduced(np.array(losses), len(losses), reduction)


def tversky(scores, labels, valid, alpha=0.3, beta=0.7, smooth=1, weights=None, without=()):
    classes = max(scores.shape[1], 2)
    weights = pair(weights) if weights else [1.0] * classes
    total = 0.0
    for n in range(len(scores)):
        for class_ in set(range(classes)) - set(without):
            both = only_predicted = only_labelled = 0.0
            for _, y, x in places(valid[n : n + 1]):
                chance = softmax(scores[n, :, y, x])[class_]
                hit = float(labels[n, y, x] == class_)
                both += chance * hit
                only_predicted += chance * (1 - hit)
                only_labelled += (1 - chance) * hit
            whole = both + alpha * only_predicted + beta * only_labelled
            total += weights[class_] * (1 - (both + smooth) / (whole + smooth))
    return total / classes / len(scores)


def hausdorff(scores, labels, valid, weights=None, without=()):
    classes = max(scores.shape[1], 2)
    weights = pair(weights) if weights else [1.0] * classes
    total = 0.0
    predicted = np.apply_along_axis(lambda logits: np.argmax(softmax(logits)), 1, scores)
    for class_ in set(range(1, classes)) - set(without):
        regions = [valid & (map_ == class_) for map_ in (labels, predicted)]
        for n, y, x in places(valid):
            chance = softmax(scores[n, :, y, x])[class_]
            squares = sum(_squared_distance(region[n], y, x) for region in regions)
            total += weights[class_] * (chance - (labels[n, y, x] == class_)) ** 2 * squares
    return total / labels.size / classes


def _squared_distance(region, y, x):
    """To the nearest pixel outside of the region of a pixel in it."""
    if not region[y, x]:
        return 0
    if region.all():
        region, y, x = np.pad(region, 1), y + 1, x + 1
    return min((y - v) ** 2 + (x - u) ** 2 for v, u in zip(*np.nonzero(~region), strict=True))


def lovasz(scores, labels, valid, binary=False, classes="present", weights=None):
    """Errors in falling order, each times the growth of the Jaccard loss of the set up to it."""
    pixels = places(valid)
    if not pixels:
        return 0.0
    if binary:
        signs = [2 * labels[place] - 1 for place in pixels]
        errors = [
            max(0.0, 1 - sign * scores[n, 0, y, x])
            for sign, (n, y, x) in zip(signs, pixels, strict=True)
        ]
        return _lovasz_sum(errors, [sign > 0 for sign in signs])
    losses = []
    chances = [softmax(scores[n, :, y, x]) for n, y, x in pixels]
    count = len(chances[0])
    for class_ in range(count) if isinstance(classes, str) else classes:
        inside = [labels[place] == class_ for place in pixels]
        if classes == "present" and not any(inside):
            continue
        errors = [abs(hit - chance[class_]) for hit, chance in zip(inside, chances, strict=True)]
        losses.append(_lovasz_sum(errors, inside) * (weights[class_] if weights else 1))
    return sum(losses) / len(losses)


def _lovasz_sum(errors, inside):
    order = sorted(range(len(errors)), key=lambda place: -errors[place])
    total, before = 0.0, 0.0
    missed, extra, size = 0, 0, sum(inside)
    for place in order:
        missed, extra = missed + bool(inside[place]), extra + (not inside[place])
        jaccard = 1 - (size - missed) / (size + extra)
        total, before = total + errors[place] * (jaccard - before), jaccard
    return total


def reduced(values, count, reduction):
    if reduction == "none":
        return values
    return values.sum() if reduction == "sum" else values.sum() / count

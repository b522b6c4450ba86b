from mmseg_resnest_cli import main

if __name__ == "__main__":
    main("detect")

"""`python -m training` is `ood-train`, as torchrun starts it."""

from training.cli import main

if __name__ == "__main__":
    main()

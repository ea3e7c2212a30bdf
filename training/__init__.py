"""Make, calibrate, evaluate and publish energy-fine-tuned classifiers, offline."""

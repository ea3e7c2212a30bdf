"""The paper's experiments, and those past it, by one command: `ood-train reproduce`."""

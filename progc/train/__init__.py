"""Training: a schedule's stages run one after another, with boundaries between them (docs/training.md)."""

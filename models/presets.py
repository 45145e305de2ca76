"""Sizes by name, as the papers that introduced them define them; they apply to the user's own network.

ViT: Dosovitskiy et al. 2021, table 1 (tiny and small: Touvron et al. 2021, table 1; huge: patch size is the
user's). DeiT: Touvron et al. 2021, table 1. DiT: Peebles and Xie 2023, table 1.
"""

from __future__ import annotations

PRESETS: dict[str, str] = {
    "vit_t": "depth=12,width=192,heads=3,mlp_ratio=4",
    "vit_s": "depth=12,width=384,heads=6,mlp_ratio=4",
    "vit_b": "depth=12,width=768,heads=12,mlp_ratio=4",
    "vit_l": "depth=24,width=1024,heads=16,mlp_ratio=4",
    "vit_h": "depth=32,width=1280,heads=16,mlp_ratio=4",
    "deit_t": "depth=12,width=192,heads=3,mlp_ratio=4",
    "deit_s": "depth=12,width=384,heads=6,mlp_ratio=4",
    "deit_b": "depth=12,width=768,heads=12,mlp_ratio=4",
    "dit_s": "depth=12,width=384,heads=6,mlp_ratio=4",
    "dit_b": "depth=12,width=768,heads=12,mlp_ratio=4",
    "dit_l": "depth=24,width=1024,heads=16,mlp_ratio=4",
    "dit_xl": "depth=28,width=1152,heads=16,mlp_ratio=4",
}

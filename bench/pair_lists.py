"""Families of published sizes for bench/pairs.py: which models belong together, and which pairs are always tried.

A key is `library:name`, followed by a question mark and options of the library's constructor:
`timm:resnet18?num_classes=10`.
"""

from __future__ import annotations

from typing import Any

NAMED: dict[str, list[tuple[str, str]]] = {
    "vit": [
        ("timm:vit_small_patch16_224", "timm:vit_base_patch16_224"),
        ("timm:vit_large_patch16_224", "timm:vit_huge_patch14_224"),
        ("timm:vit_small_patch16_224", "timm:vit_base_patch16_384"),
    ],
    "deit3": [("timm:deit3_large_patch16_224", "timm:deit3_huge_patch14_224")],
    "swin": [
        ("timm:swin_small_patch4_window7_224", "timm:swin_base_patch4_window7_224"),
        ("timm:swin_base_patch4_window7_224", "timm:swin_large_patch4_window12_384"),
    ],
    "convnext": [("timm:convnext_tiny", "timm:convnext_base")],
    "resnet": [("timm:resnet50", "timm:wide_resnet50_2")],
    "efficientnet": [("timm:efficientnet_b1", "timm:efficientnet_b5")],
    "volo": [("timm:volo_d1_224", "timm:volo_d3_224")],
    "cait": [("timm:cait_xxs24_224", "timm:cait_xs24_384")],
    "beit": [("timm:beit_base_patch16_224", "timm:beit_large_patch16_384")],
    "classes": [
        ("timm:resnet18?num_classes=10", "timm:resnet34"),
        ("timm:vit_tiny_patch16_224?num_classes=10", "timm:vit_small_patch16_224?num_classes=100"),
        ("timm:convnext_pico", "timm:convnext_tiny?num_classes=21841"),
    ],
    "torchvision resnet": [("torchvision:resnet50", "torchvision:wide_resnet50_2")],
    "torchvision vit": [("torchvision:vit_l_16", "torchvision:vit_h_14")],
}


def _keys(library: str, text: str, form: str = "{}") -> list[str]:
    return [f"{library}:{form.format(name)}" for name in text.split()]


FAMILIES: dict[str, list[str]] = {
    "vit": _keys("timm", "tiny small base large", "vit_{}_patch16_224"),
    "deit": _keys("timm", "tiny small base", "deit_{}_patch16_224"),
    "deit distilled": _keys("timm", "tiny small base", "deit_{}_distilled_patch16_224"),
    "deit3": _keys("timm", "small medium base large", "deit3_{}_patch16_224"),
    "swin": _keys("timm", "tiny small base large", "swin_{}_patch4_window7_224"),
    "swinv2": _keys("timm", "tiny small base", "swinv2_{}_window8_256")
    + _keys("timm", "base large", "swinv2_{}_window12_192"),
    "convnext": _keys("timm", "atto femto pico nano tiny small base large xlarge", "convnext_{}"),
    "convnextv2": _keys("timm", "atto femto pico nano tiny base large huge", "convnextv2_{}"),
    "resnet": _keys("timm", "resnet18 resnet34 resnet50 resnet101 resnet152 wide_resnet50_2 wide_resnet101_2"),
    "resnext": _keys("timm", "resnext50_32x4d resnext101_32x4d resnext101_32x8d resnext101_64x4d"),
    "efficientnet": _keys("timm", "b0 b1 b2 b3 b4 b5 b6 b7", "efficientnet_{}"),
    "regnetx": _keys("timm", "002 004 006 008 016 032 040 064 080 120 160 320", "regnetx_{}"),
    "regnety": _keys("timm", "002 004 006 008 016 032 040 064 080 120 160 320", "regnety_{}"),
    "mobilenetv2": _keys("timm", "035 050 075 100 110d 120d 140", "mobilenetv2_{}"),
    "mobilenetv3": _keys("timm", "small_050 small_075 small_100 large_075 large_100", "mobilenetv3_{}"),
    "densenet": _keys("timm", "densenet121 densenet169 densenet201 densenet161"),
    "mixer": _keys("timm", "s32 b32 l32 s16 b16 l16", "mixer_{}_224"),
    "volo": _keys("timm", "d1 d2 d3 d4 d5", "volo_{}_224"),
    "cait": _keys("timm", "xxs24_224 xxs36_224 s24_224 xs24_384 s24_384 s36_384 m36_384", "cait_{}"),
    "beit": _keys("timm", "base large", "beit_{}_patch16_224"),
    "maxvit": _keys("timm", "tiny small base large", "maxvit_{}_tf_224"),
    "pvt": _keys("timm", "b0 b1 b2 b3 b4 b5", "pvt_v2_{}"),
    "tiny_vit": _keys("timm", "5m 11m 21m", "tiny_vit_{}_224"),
    "convformer": _keys("timm", "s18 s36 m36 b36", "convformer_{}"),
    "caformer": _keys("timm", "s18 s36 m36 b36", "caformer_{}"),
    "edgenext": _keys("timm", "xx_small x_small small base", "edgenext_{}"),
    "xcit": _keys("timm", "nano_12 tiny_12 small_12 tiny_24 small_24 medium_24 large_24", "xcit_{}_p16_224"),
    "torchvision resnet": _keys(
        "torchvision",
        "resnet18 resnet34 resnet50 resnet101 resnet152 wide_resnet50_2 wide_resnet101_2 resnext50_32x4d "
        "resnext101_32x8d resnext101_64x4d",
    ),
    "torchvision vgg": _keys("torchvision", "vgg11 vgg13 vgg16 vgg19 vgg11_bn vgg13_bn vgg16_bn vgg19_bn"),
    "torchvision efficientnet": _keys("torchvision", "b0 b1 b2 b3 b4 b5 b6 b7", "efficientnet_{}"),
    "torchvision regnet x": _keys("torchvision", "400mf 800mf 1_6gf 3_2gf 8gf 16gf 32gf", "regnet_x_{}"),
    "torchvision regnet y": _keys("torchvision", "400mf 800mf 1_6gf 3_2gf 8gf 16gf 32gf", "regnet_y_{}"),
    "torchvision shufflenet": _keys("torchvision", "x0_5 x1_0 x1_5 x2_0", "shufflenet_v2_{}"),
    "torchvision mnasnet": _keys("torchvision", "0_5 0_75 1_0 1_3", "mnasnet{}"),
    "torchvision mobilenet": _keys("torchvision", "mobilenet_v3_small mobilenet_v3_large"),
    "torchvision convnext": _keys("torchvision", "tiny small base large", "convnext_{}"),
    "torchvision swin": _keys("torchvision", "swin_t swin_s swin_b swin_v2_t swin_v2_s swin_v2_b"),
    "torchvision vit": _keys("torchvision", "b_16 l_16 b_32 l_32", "vit_{}"),
    "torchvision densenet": _keys("torchvision", "densenet121 densenet169 densenet201 densenet161"),
    "dit": _keys("diffusers", "dit_s dit_b dit_l dit_xl"),
    "unet": _keys("unet", "half_shallow half full_shallow full"),
    "classes": [],
}

_HALF = {"block_out_channels": (160, 320, 640, 640), "attention_head_dim": 8}
_FULL = {"block_out_channels": (320, 640, 1280, 1280), "attention_head_dim": 8}

UNETS: dict[str, dict[str, Any]] = {
    "half_shallow": {**_HALF, "layers_per_block": 1},
    "half": {**_HALF, "layers_per_block": 2},
    "full_shallow": {**_FULL, "layers_per_block": 1},
    "full": {**_FULL, "layers_per_block": 2},
}
"""Text-to-image U-Nets by their configs: `full` has the sizes of Stable Diffusion 1.5, `half` half its channels."""

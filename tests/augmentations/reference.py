"""The independent reference: torchvision's functions on uint8 tensors, given what was drawn."""

import numpy as np
import torch
from torchvision.transforms.v2 import functional as F

from stable_ssl.augmentations import View


def change(operation, drawn, image):
    """Return a uint8 tensor (channels, height, width), changed by torchvision."""
    name = type(operation).__name__
    if not drawn.get("is_applied", True):
        return image
    if name in ("RandomResizedCrop", "Resize", "CenterCrop"):
        if name == "CenterCrop":
            return F.center_crop(image, list(operation.size))
        mode = F.InterpolationMode(operation.interpolation)
        if name == "Resize":
            size = [operation.size] if isinstance(operation.size, int) else list(operation.size)
            return F.resize(image, size, mode, antialias=True)
        box = [int(drawn[side]) for side in ("top", "left", "height", "width")]
        # Channel by channel: torch ends with an internal error on some images of one pixel and three channels.
        crops = [F.resized_crop(plane[None], *box, list(operation.size), mode, antialias=True) for plane in image]
        return torch.cat(crops)
    if name == "HorizontalFlip":
        return F.horizontal_flip(image)
    if name == "VerticalFlip":
        return F.vertical_flip(image)
    if name == "Affine":
        shift, shear = ([float(drawn[f"{kind}_{axis}"]) for axis in "xy"] for kind in ("translate", "shear"))
        mode = F.InterpolationMode(operation.interpolation)
        return F.affine(image, float(drawn["angle"]), shift, float(drawn["scale"]), shear, interpolation=mode)
    if name == "ColorJitter":
        names = ("brightness", "contrast", "saturation", "hue")
        for number in drawn["order"]:
            if number >= 0:
                image = getattr(F, f"adjust_{names[number]}")(image, float(drawn[names[number]]))
        return image
    if name == "Grayscale":
        return F.rgb_to_grayscale(image, num_output_channels=len(image))
    if name == "GaussianBlur":
        return F.gaussian_blur(image, [operation.kernel_size] * 2, [float(drawn["sigma"])] * 2)
    if name == "Solarize":
        return F.solarize(image, operation.threshold)
    if name == "Erasing":
        box = [int(drawn[side]) for side in ("top", "left", "height", "width")]
        return F.erase(image, *box, torch.tensor(operation.value)[:, None, None].to(image.dtype))
    if name == "Normalize":
        image = F.to_dtype(image, torch.float32, scale=True)
        return F.normalize(image, list(operation.mean), list(operation.std))
    raise AssertionError(name)


def make(view, images, seed=0, epoch=0, number=0):
    """Return the views of images (height, width, channels), float32."""
    indices = list(range(len(images)))
    parameters = view.parameters(seed, epoch, indices, [image.shape for image in images])[number]
    made = []
    for i, array in enumerate(images):
        image = torch.from_numpy(np.ascontiguousarray(array.transpose(2, 0, 1)))
        for place, operation in enumerate(view.views[number].operations):
            prefix = f"{place}.{type(operation).__name__}."
            drawn = {
                key.removeprefix(prefix): values[i] for key, values in parameters.items() if key.startswith(prefix)
            }
            image = change(operation, drawn, image)
        made.append(image if image.is_floating_point() else F.to_dtype(image, torch.float32, scale=True))
    return torch.stack(made)


def random_images(shape, number, generator):
    """Return noise, smooth images, black, white and a checkerboard: uint8 (number, height, width, channels)."""
    height, width, channels = shape
    images = generator.integers(0, 256, (number, *shape), dtype=np.uint8)
    y, x = np.mgrid[:height, :width][..., None] / max(height, width)
    phases = generator.uniform(0, 6, (number, 1, 1, channels))
    smooth = 127.5 * (1 + np.sin(5 * x + phases) * np.cos(4 * y + 2 * phases))
    images[::2] = smooth[::2].astype(np.uint8)
    images[0], images[1], images[2] = 0, 255, (255 * ((x + y) * max(height, width) % 2)).astype(np.uint8)
    return images


def differences(view, images, **key):
    """Return by how many levels each value of each view is off (for views without `Normalize`)."""
    indices = list(range(len(images)))
    ours = view.make(images, key.get("seed", 0), key.get("epoch", 0), indices)
    theirs = [make(view, images, number=number, **key) for number in range(len(view.views))]
    return torch.cat([((a - b) * 255).abs().flatten() for a, b in zip(ours, theirs, strict=True)])


def alone(*operations):
    return View(list(operations))

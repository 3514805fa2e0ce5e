"""What can be done to an image, one operation per file. A new one is a file beside these, and a line here."""

from .affine import Affine as Affine
from .base import Operation as Operation
from .center_crop import CenterCrop as CenterCrop
from .color_jitter import ColorJitter as ColorJitter
from .erasing import Erasing as Erasing
from .gaussian_blur import GaussianBlur as GaussianBlur
from .grayscale import Grayscale as Grayscale
from .horizontal_flip import HorizontalFlip as HorizontalFlip
from .normalize import Normalize as Normalize
from .random_resized_crop import RandomResizedCrop as RandomResizedCrop
from .resize import Resize as Resize
from .solarize import Solarize as Solarize
from .vertical_flip import VerticalFlip as VerticalFlip

"""How well faces are restored, by metrics of single pictures and of sets of them."""

from pipelines.metrics.classical import METRICS, psnr, ssim

__all__ = ["METRICS", "psnr", "ssim"]

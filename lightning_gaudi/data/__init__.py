"""Data in few, fixed shapes: buckets, batches grouped by them, and text from files."""

from lightning_gaudi.data.buckets import choose_buckets
from lightning_gaudi.data.collate import BucketCollator
from lightning_gaudi.data.loader import BucketLoader
from lightning_gaudi.data.order import in_data_order
from lightning_gaudi.data.prompts import PromptDataModule
from lightning_gaudi.data.resume import make_resumable
from lightning_gaudi.data.sampler import BucketBatchSampler
from lightning_gaudi.data.text import TextDataModule

__all__ = [
    "BucketBatchSampler",
    "BucketCollator",
    "BucketLoader",
    "PromptDataModule",
    "TextDataModule",
    "choose_buckets",
    "in_data_order",
    "make_resumable",
]

import torch
from opflow.kernels.spectral_conv.dft import TruncatedDFT


def prefers_fft(dft: TruncatedDFT, dtype: torch.dtype) -> bool:
    return False

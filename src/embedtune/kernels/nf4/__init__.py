"""4-bit NormalFloat weights (Dettmers et al. 2023): quantise and dequantise, blockwise, scales quantised too."""

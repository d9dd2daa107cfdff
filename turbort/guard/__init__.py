"""What acts while a video is made: the outlier monitor, kernels that take over from others, and recorded policies."""

"""Step times of engines that hold attention and experts on the same GPUs, tensor parallelism included."""

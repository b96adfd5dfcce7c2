"""A GPU that is not there: the code of a GPU's training step runs on it, its kernels are compiled, nothing is computed.

Tensors are torch's fake ones on a device called cuda. What autograd and streams ask of a device, torch without CUDA
lacks and torch with CUDA would ask of a driver: `device.cpp` has it, empty. A Triton launch goes through Triton's own
compiler to machine code of the stand-in's compute capability, and ends where the driver would start it. So a process of
its own plays it (`worker.py`).
"""

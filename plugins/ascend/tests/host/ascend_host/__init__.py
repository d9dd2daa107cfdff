"""A stand-in for CANN on the host: enough of AscendCL for the real torch-npu to run on, and a recorder of aclnn calls.

Nothing here computes what an NPU computes: `driver` and `recorder` are C libraries that keep books, `emulator` runs
every op on the CPU. See docs/ascend.md for what each of them can prove.
"""

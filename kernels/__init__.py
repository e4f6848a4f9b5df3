"""Operations on tensors: one file per operation, with its reference twin in `kernels.reference`."""

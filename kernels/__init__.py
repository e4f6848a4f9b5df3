"""Operations on tensors: one file per operation, with its reference twin in `kernels.reference`.

`norm`, `rotary`, `activation`, `linear`, `attention`, `philox`, `sample`, `mask`, `penalty` and `logprob`
hold the wrappers, which state and assert shapes; `opset` the table of implementations that a wrapper is
given; `reference` and `cpu` two such tables.
"""

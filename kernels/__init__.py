"""Operations on tensors: one file per operation, with its reference twin in `kernels.reference`.

`norm`, `rotary`, `activation`, `linear`, `moe`, `attention`, `philox`, `argmax`, `sample`, `mask`, `penalty`
and `logprob` hold the wrappers, which state and assert shapes; `opset` the table of implementations that a
wrapper is given; `reference` and `cpu` two such tables. Activations, weights and caches are float32, bfloat16
or float16; what is computed between reading and writing one of them is computed in float32.
"""

"""The performance model: seconds of an engine step by model, precision and hardware.

A step reads all weights and the resident KV cache once and computes each of its tokens. Which
shares of a device's peaks it reaches comes from one of three sources, named in `StepTime.source`:

- `measured`: the prediction times the ratio that this cluster measured;
- `table`: shares fitted on published kernel measurements of this GPU family (`data/speed.json`);
- `roofline`: the geometric means of those families, for hardware or precisions without any.

`step` has the formula, `experts` the part of mixtures in it, `speculation` what drafted tokens
yield; `roofline` derives the coefficients from shares, `table` reads the shares and `sources`
chooses among the sources.
"""

"""A service around a network that was compressed for OpenVINO: MODEL=build/demo uvicorn app:app"""

import os
from typing import Annotated

import numpy as np
import openvino as ov
from fastapi import Body, FastAPI, HTTPException

LARGEST = int(os.environ.get("BATCH", "32"))  # samples computed at once; more are split
OPTIONS = {"INFERENCE_PRECISION_HINT": "f32", "PERFORMANCE_HINT": "THROUGHPUT"}
model = ov.Core().compile_model(f"{os.environ['MODEL']}/model.xml", "CPU", OPTIONS)
shape = model.input().partial_shape
app = FastAPI()


@app.post("/predict")
def predict(inputs: Annotated[list, Body()]) -> list:
    """The outputs for any number of samples. FastAPI calls this in several threads: each call makes its own request."""
    try:
        x = np.asarray(inputs, np.float64)
    except (ValueError, TypeError, OverflowError) as error:
        raise HTTPException(422, f"the inputs are not an array of numbers: {error}") from error
    if not (len(x) and shape.compatible(ov.PartialShape(x.shape)) and (abs(x) < np.finfo(np.float32).max).all()):
        raise HTTPException(422, f"give finite numbers of shape {shape}, not {list(x.shape)}")
    request = model.create_infer_request()
    batches = [x[k : k + LARGEST].astype(np.float32) for k in range(0, len(x), LARGEST)]
    return np.concatenate([request.infer([batch])[0].copy() for batch in batches]).tolist()

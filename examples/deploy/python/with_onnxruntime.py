"""Runs a folder that was saved for ONNX Runtime: python with_onnxruntime.py build/demo inputs.npy outputs.npy"""

import sys

import numpy as np
import onnxruntime as ort

folder, inputs, outputs = sys.argv[1:]
session = ort.InferenceSession(f"{folder}/model.onnx")  # may be called by several threads at once
name = session.get_inputs()[0].name
np.save(outputs, session.run(None, {name: np.load(inputs)})[0])

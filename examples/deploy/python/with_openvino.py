"""Runs a folder that was saved for OpenVINO: python with_openvino.py build/demo inputs.npy outputs.npy"""

import sys

import numpy as np
import openvino as ov

folder, inputs, outputs = sys.argv[1:]
# On CPUs with BF16 products OpenVINO computes float operators in BF16 unless told otherwise.
model = ov.Core().compile_model(f"{folder}/model.xml", "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
request = model.create_infer_request()  # one for each thread
np.save(outputs, request.infer([np.load(inputs)])[0])

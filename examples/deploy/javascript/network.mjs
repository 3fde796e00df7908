// Runs model.onnx in a browser, or in Node, by WebAssembly on one thread.
import * as ort from "onnxruntime-web/wasm";

ort.env.wasm.numThreads = 1; // more need the headers COOP and COEP

/** Opens a model, given as its address or its bytes; returns a function from inputs of some samples to their outputs. */
export async function load(model) {
  const session = await ort.InferenceSession.create(model, { executionProviders: ["wasm"] });
  const [input] = session.inputMetadata; // its shape begins with "batch"
  return async (values) => {
    const sample = input.shape.slice(1);
    const batch = values.length / sample.reduce((a, b) => a * b, 1);
    const tensor = new ort.Tensor("float32", values, [batch, ...sample]);
    const results = await session.run({ [input.name]: tensor });
    return results[session.outputNames[0]].data;
  };
}

// Runs model.onnx on raw float32 inputs: ./run_onnxruntime model.onnx inputs.f32 outputs.f32
#include <fstream>
#include <functional>
#include <iterator>
#include <numeric>
#include <vector>

#include <onnxruntime_cxx_api.h>

int main(int, char** argv) {
    Ort::Env env(ORT_LOGGING_LEVEL_ERROR);
    Ort::Session session(env, argv[1], Ort::SessionOptions());  // may be called by several threads at once
    Ort::AllocatorWithDefaultOptions allocator;
    const auto input = session.GetInputNameAllocated(0, allocator);
    const auto output = session.GetOutputNameAllocated(0, allocator);

    std::ifstream file(argv[2], std::ios::binary);
    std::vector<char> bytes{std::istreambuf_iterator<char>(file), {}};
    const auto count = bytes.size() / sizeof(float);
    // The first dimension, "batch", may be of any size; the others are those of the network.
    const auto type = session.GetInputTypeInfo(0);
    auto shape = type.GetTensorTypeAndShapeInfo().GetShape();
    shape[0] = 1;
    shape[0] = count / std::accumulate(shape.begin(), shape.end(), int64_t{1}, std::multiplies<>());

    const auto memory = Ort::MemoryInfo::CreateCpu(OrtArenaAllocator, OrtMemTypeDefault);
    auto tensor = Ort::Value::CreateTensor<float>(
        memory, reinterpret_cast<float*>(bytes.data()), count, shape.data(), shape.size());
    const char* inputs[] = {input.get()};
    const char* outputs[] = {output.get()};
    const auto results = session.Run(Ort::RunOptions(), inputs, &tensor, 1, outputs, 1);
    const auto size = results[0].GetTensorTypeAndShapeInfo().GetElementCount() * sizeof(float);
    std::ofstream(argv[3], std::ios::binary).write(results[0].GetTensorData<char>(), size);
}

// Runs model.xml on raw float32 inputs: ./run_openvino model.xml inputs.f32 outputs.f32
#include <fstream>
#include <iterator>
#include <vector>

#include <openvino/openvino.hpp>

int main(int, char** argv) {
    ov::Core core;
    auto model = core.compile_model(argv[1], "CPU", ov::hint::inference_precision(ov::element::f32));

    std::ifstream file(argv[2], std::ios::binary);
    std::vector<char> bytes{std::istreambuf_iterator<char>(file), {}};
    // The first dimension is the batch, which any call may choose; the others are those of the network.
    auto shape = model.input().get_partial_shape();
    shape[0] = 1;
    const auto sample = ov::shape_size(shape.to_shape()) * sizeof(float);
    shape[0] = bytes.size() / sample;

    auto request = model.create_infer_request();  // one for each thread
    request.set_input_tensor(ov::Tensor(ov::element::f32, shape.to_shape(), bytes.data()));
    request.infer();
    const auto output = request.get_output_tensor();
    std::ofstream(argv[3], std::ios::binary).write(static_cast<const char*>(output.data()), output.get_byte_size());
}

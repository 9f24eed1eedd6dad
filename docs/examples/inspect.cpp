// Inspects PPM pictures by an exported category, with onnxruntime alone: the verdict of `ddad export` in a C++ program.
//
//   g++ -std=c++17 -O2 inspect.cpp -I$ORT/include -L$ORT/lib -lonnxruntime -o inspect
//   ./inspect FOLDER picture.ppm ...
//
// FOLDER is what `ddad export` wrote. Prints a line for each picture: name, score, threshold, good or defective.

#include <onnxruntime_cxx_api.h>

#include <array>
#include <cstdint>
#include <fstream>
#include <iostream>
#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

struct Picture {
    int64_t height = 0, width = 0;
    std::vector<float> pixels;  // [3, height, width] in [0, 1]: red, green, blue
};

// Reads a binary PPM of 8 bits (P6).
Picture read_ppm(const std::string& path) {
    std::ifstream file(path, std::ios::binary);
    std::string magic, word;
    std::vector<int64_t> header;
    file >> magic;
    while (header.size() < 3 && file >> word) {
        if (word[0] == '#') {
            std::getline(file, word);
        } else {
            header.push_back(std::stoll(word));
        }
    }
    if (magic != "P6" || header.size() < 3 || header[2] != 255) {
        throw std::runtime_error(path + " is no PPM of 8 bits");
    }
    file.get();  // the one blank before the pixels
    Picture picture{header[1], header[0], {}};
    const int64_t area = picture.height * picture.width;
    std::vector<uint8_t> bytes(3 * area);
    if (!file.read(reinterpret_cast<char*>(bytes.data()), static_cast<std::streamsize>(bytes.size()))) {
        throw std::runtime_error(path + " is cut off");
    }
    picture.pixels.resize(3 * area);
    for (int64_t i = 0; i < area; ++i) {
        for (int64_t channel = 0; channel < 3; ++channel) {
            picture.pixels[channel * area + i] = bytes[3 * i + channel] / 255.0f;
        }
    }
    return picture;
}

// The number behind "threshold" in metadata.json.
double read_threshold(const std::string& folder) {
    std::ifstream file(folder + "/metadata.json");
    std::stringstream text;
    text << file.rdbuf();
    const std::string key = "\"threshold\":";
    const auto place = text.str().find(key);
    if (place == std::string::npos) {
        throw std::runtime_error(folder + "/metadata.json names no threshold");
    }
    return std::stod(text.str().substr(place + key.size()));
}

int main(int count, char** arguments) {
    if (count < 3) {
        std::cerr << "usage: inspect FOLDER PICTURE.ppm ...\n";
        return 2;
    }
    try {
        const std::string folder = arguments[1];
        const double threshold = read_threshold(folder);
        Ort::Env environment(ORT_LOGGING_LEVEL_ERROR, "ddad");
        Ort::Session session(environment, (folder + "/verdict.onnx").c_str(), Ort::SessionOptions());
        const auto memory = Ort::MemoryInfo::CreateCpu(OrtArenaAllocator, OrtMemTypeDefault);
        const char* inputs[] = {"images"};
        const char* outputs[] = {"anomaly_map", "image_score"};
        for (int i = 2; i < count; ++i) {
            Picture picture = read_ppm(arguments[i]);
            const std::array<int64_t, 4> shape{1, 3, picture.height, picture.width};
            Ort::Value images = Ort::Value::CreateTensor<float>(
                memory, picture.pixels.data(), picture.pixels.size(), shape.data(), shape.size());
            auto found = session.Run(Ort::RunOptions{}, inputs, &images, 1, outputs, 2);
            const float score = found[1].GetTensorData<float>()[0];
            std::cout << arguments[i] << " " << score << " " << threshold << " "
                      << (score > threshold ? "defective" : "good") << "\n";
        }
    } catch (const std::exception& error) {
        std::cerr << "inspect: error: " << error.what() << "\n";
        return 1;
    }
    return 0;
}

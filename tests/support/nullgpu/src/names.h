// What the pretended devices are called. Both libraries of the stand-in read it.
#pragma once

#include <cstdlib>
#include <string>

namespace nullgpu {

// NULLGPU_NAME is one name for all devices, or a name for each with `;` between them; the last is that of all others.
inline std::string name_of(int number) {
  const char* given = getenv("NULLGPU_NAME");
  std::string names = given && *given ? given : "NVIDIA H200";
  size_t start = 0;
  for (size_t next; number > 0 && (next = names.find(';', start)) != std::string::npos; number--) start = next + 1;
  return names.substr(start, names.find(';', start) - start);
}

}  // namespace nullgpu

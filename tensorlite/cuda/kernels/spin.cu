// A kernel that only waits. Launches queued behind it run without the gaps of the host, so that they can be timed.
extern "C" __global__ void spin(long long clocks) {
    for (long long start = clock64(); clock64() - start < clocks;) {
    }
}

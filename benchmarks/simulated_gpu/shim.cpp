// Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
//
// What torch's core asks of a CUDA device, answered by one that does nothing: autograd on a build without CUDA then runs
// over tensors of cuda:0, which have no numbers. One device, one stream, nothing to wait for.
//
// Written against torch 2.13 (c10/core/impl/DeviceGuardImplInterface.h, ATen/detail/CUDAHooksInterface.h).

#include <ATen/DeviceAccelerator.h>
#include <ATen/detail/CUDAHooksInterface.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>

namespace simulated {

using c10::Device;
using c10::DeviceIndex;
using c10::DeviceType;
using c10::Stream;

const Device kOnly(DeviceType::CUDA, 0);

class IdleDevice final : public c10::impl::DeviceGuardImplInterface {
 public:
  DeviceType type() const override { return DeviceType::CUDA; }
  DeviceIndex deviceCount() const noexcept override { return 1; }
  Device getDevice() const override { return kOnly; }
  Device exchangeDevice(Device) const override { return kOnly; }
  void setDevice(Device) const override {}
  void uncheckedSetDevice(Device) const noexcept override {}

  Stream getStream(Device) const noexcept override { return theStream(); }
  Stream getDefaultStream(Device) const override { return theStream(); }
  Stream getNewStream(Device, int) const override { return theStream(); }
  Stream exchangeStream(Stream) const noexcept override { return theStream(); }
  bool queryStream(const Stream&) const override { return true; }
  void synchronizeStream(const Stream&) const override {}
  void synchronizeDevice(const DeviceIndex) const override {}
  void recordDataPtrOnStream(const c10::DataPtr&, const Stream&) const override {}

  void record(void**, const Stream&, const DeviceIndex, const c10::EventFlag) const override {}
  void block(void*, const Stream&) const override {}
  bool queryEvent(void*) const override { return true; }
  void synchronizeEvent(void*) const override {}
  void destroyEvent(void*, const DeviceIndex) const noexcept override {}

 private:
  static Stream theStream() { return Stream(Stream::DEFAULT, kOnly); }
};

// The guard is looked up by the device's type.
C10_REGISTER_GUARD_IMPL(CUDA, IdleDevice)

}  // namespace simulated

namespace at {

struct IdleHooks final : CUDAHooksInterface {
  explicit IdleHooks(CUDAHooksArgs) {}
  void init() const override {}
  bool hasCUDA() const override { return true; }
  bool hasPrimaryContext(DeviceIndex) const override { return true; }
  DeviceIndex deviceCount() const override { return 1; }
  DeviceIndex getCurrentDevice() const override { return 0; }
  DeviceIndex exchangeDevice(DeviceIndex) const override { return 0; }
  DeviceIndex maybeExchangeDevice(DeviceIndex) const override { return 0; }
  void setCurrentDevice(DeviceIndex) const override {}
};

// torch finds the hooks by the name of the class that a CUDA build has.
C10_REGISTER_TYPED_CLASS(CUDAHooksRegistry, "CUDAHooks", IdleHooks)

// Which accelerator there is, a build knows when it is compiled. Of two definitions the loader takes the one that it met
// first, so that this library must be loaded before torch.
namespace accelerator {
std::optional<c10::DeviceType> getAccelerator(bool) { return c10::DeviceType::CUDA; }
}  // namespace accelerator

}  // namespace at

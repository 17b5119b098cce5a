# Not built yet: the machine this was written on has no Docker engine. Please report what breaks.
#
#   docker build -t dtvla .                              the robot side and the simulator, on the CPU
#   docker run --rm -it --init --shm-size=1g -v "$PWD/runs:/opt/dtvla/runs" dtvla demo
#   docker build --target gpu -t dtvla:gpu .             the same for an NVIDIA GPU (driver 580 or newer)
#   docker build --target export -t dtvla:export .       builds TensorRT engines
#   docker compose up                                    simulator and policy in two containers: compose.yaml
#
# The same set-up as `make setup`, on the ROS 2 Kilted image: the nodes run on the wheels in .venv, while the
# image's own ros2, launch and rviz talk to them over DDS. All images are Ubuntu 24.04, hence the same
# Python 3.12: a .venv made in one stage runs in another, at the same path.

# 10.16.1 because ONNX Runtime links libnvinfer.so.10 and this one has the KVCacheUpdate layer.
ARG TENSORRT=10.16.1.11

# --- What the set-up needs -------------------------------------------------------------------------------------
FROM ros:kilted-ros-base AS build
RUN apt-get update \
    && apt-get install -y --no-install-recommends cmake g++ python3-dev python3-venv \
    libegl1 libegl-mesa0 libgl1-mesa-dri libopengl0 \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /opt/dtvla
COPY requirements requirements
COPY tools tools
COPY ros2_ws ros2_ws
COPY launch launch
COPY urdf urdf
RUN tools/setup.sh runtime && rm -rf ros2_ws/log /root/.cache

# TensorRT comes as wheels from the vendor's index (PyPI has only stubs that lead there), into .venv, because
# there the exact version is named and Python finds it: the vendor's own TensorRT image carries its bindings in
# the system's Python, names its version by month, and brings a compiler and samples that nobody here needs.
FROM build AS gpu-build
ARG TENSORRT
RUN tools/setup.sh gpu \
    && .venv/bin/python -m pip install --no-cache-dir --no-compile --extra-index-url https://pypi.nvidia.com \
    -c requirements/lock.txt "tensorrt-cu13==${TENSORRT}" \
    && rm -rf /root/.cache

# From PyPI torch comes with its own CUDA libraries and triton.
FROM build AS export-build
ARG TENSORRT
RUN tools/setup.sh dev \
    && tools/setup.sh gpu \
    && .venv/bin/python -m pip install --no-cache-dir --no-compile --extra-index-url https://pypi.nvidia.com \
    -c requirements/lock.txt "tensorrt-cu13==${TENSORRT}" \
    && rm -rf /root/.cache

# --- rviz beside a graph that runs elsewhere; none of our wheels, only the launch file and what it reads ---------
FROM ros:kilted-ros-core AS rviz
RUN apt-get update \
    && apt-get install -y --no-install-recommends ros-kilted-robot-state-publisher ros-kilted-rviz2 \
    ros-kilted-xacro libgl1-mesa-dri \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /opt/dtvla
COPY launch launch
COPY urdf urdf
COPY ros2_ws/src/dtvla ros2_ws/src/dtvla
ENV PYTHONPATH=/opt/dtvla/ros2_ws/src/dtvla
CMD ["ros2", "launch", "launch/rviz.launch.py"]

# --- CUDA: what `gpu` and `export` run on ----------------------------------------------------------------------
# onnxruntime-gpu 1.31.1 links CUDA 13, cuBLAS 13 and cuDNN 9. Of CUDA 13 the first minor release: a newer one
# would ask for a newer driver and bring nothing. It has no ROS distribution; the wheels need none.
FROM nvidia/cuda:13.0.2-cudnn-runtime-ubuntu24.04 AS cuda
RUN apt-get update \
    && apt-get install -y --no-install-recommends python3 libegl1 libegl-mesa0 libgl1-mesa-dri libopengl0 \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /opt/dtvla
ENV DTVLA_CACHE=/tmp/dtvla-cache
# ONNX Runtime's TensorRT provider asks the loader for libnvinfer.so.10, which lies among the wheels.
RUN echo /opt/dtvla/.venv/lib/python3.12/site-packages/tensorrt_libs >/etc/ld.so.conf.d/tensorrt.conf

FROM cuda AS export
# Triton compiles its launcher with the system's compiler.
RUN apt-get update \
    && apt-get install -y --no-install-recommends gcc libc6-dev python3-dev \
    && rm -rf /var/lib/apt/lists/*
COPY --from=export-build /opt/dtvla /opt/dtvla
COPY training training
COPY model_export model_export
RUN ldconfig
ENTRYPOINT ["/opt/dtvla/.venv/bin/python", "-m"]
CMD ["model_export.engine.bundle_engines", "--help"]

FROM cuda AS gpu
COPY --from=gpu-build /opt/dtvla /opt/dtvla
RUN ldconfig
ENTRYPOINT ["/opt/dtvla/.venv/bin/dtvla"]
CMD ["demo"]

# --- Without the compilers; the last one, hence what `docker build .` makes --------------------------------------
FROM ros:kilted-ros-core AS runtime
RUN apt-get update \
    && apt-get install -y --no-install-recommends libegl1 libegl-mesa0 libgl1-mesa-dri libopengl0 \
    && rm -rf /var/lib/apt/lists/*
COPY --from=build /opt/dtvla /opt/dtvla
WORKDIR /opt/dtvla
ENV DTVLA_CACHE=/tmp/dtvla-cache
# Not the image's own entry point: it would put the distribution's rclpy before the wheels' one.
ENTRYPOINT ["/opt/dtvla/.venv/bin/dtvla"]
CMD ["demo"]

# Not built yet: the machine this was written on has no Docker. Please report what breaks.
#
#   docker build -t dtvla .
#   docker run --rm -it --init --shm-size=1g -v "$PWD/runs:/opt/dtvla/runs" dtvla demo
#
# The same set-up as `make setup`, on the ROS 2 Kilted image: the nodes run on the wheels in .venv, while the
# image's own ros2, launch and rviz talk to them over DDS.
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

# Without the compilers.
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

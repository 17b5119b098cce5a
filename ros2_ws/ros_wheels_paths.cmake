# Makes the ROS 2 wheels usable with CMake. Passed to colcon as -DCMAKE_PROJECT_INCLUDE (tools/setup.sh).
#
# The wheels were built under /opt/python, and their exported Python targets still name that folder's headers,
# which exist on no other machine: CMake then refuses the target. Drops those entries in memory, once all
# targets are known; nothing on disk is patched.
function(drop_include_folders_of_the_wheels_build_machine)
  get_property(targets DIRECTORY "${CMAKE_SOURCE_DIR}" PROPERTY IMPORTED_TARGETS)
  foreach(target IN LISTS targets)
    get_target_property(folders ${target} INTERFACE_INCLUDE_DIRECTORIES)
    if(folders MATCHES "/opt/python/")
      list(FILTER folders EXCLUDE REGEX "^/opt/python/")
      set_target_properties(${target} PROPERTIES INTERFACE_INCLUDE_DIRECTORIES "${folders}")
    endif()
  endforeach()
endfunction()
cmake_language(DEFER DIRECTORY "${CMAKE_SOURCE_DIR}" CALL drop_include_folders_of_the_wheels_build_machine)

"""The LIBERO bridge: a simulated robot behind the topics of a real one."""

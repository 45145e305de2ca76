"""Analysis: what a program contains that can grow, and what a step of it costs.

Axes and chains say what can grow; demands and padding prove that growth keeps the function; costs count operations
and memory. May import `lift`, `ir` and below; never a transform, a pass or a schedule.
"""

"""Ahead-of-time compiling for TPUs without hardware: programs, collectives, memory, roofline."""

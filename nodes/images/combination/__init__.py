"""Combine Image Sets: several training sets as one."""

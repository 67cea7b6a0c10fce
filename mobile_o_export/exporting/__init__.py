"""The jobs of an export: components to lower and to verify, in this process or in workers."""

"""Recurrent Sparse Memory: its equations, a layer, a stack, and the engines that compute a step."""

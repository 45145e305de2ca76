"""Size presets, and one adapter per model library.

An adapter is a module with two functions, imported only when its library is asked for:

    locate(name) -> (construct, trained)    `construct()` builds the model; `trained` names the checkpoint whose
                                            weights it loads, or None; InputError for a name it does not know
    example(model) -> (args, kwargs) | None example inputs of a built model, drawn from a fixed seed, batch 2
"""

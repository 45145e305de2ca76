"""Sources and targets: models by file or library name, size presets, and one adapter per model library.

An adapter is a module with two functions, or three. It is imported only if its library is used:

    locate(name, args) -> (construct, trained)  `construct()` builds the model with `args` of its constructor; `trained`
                                            names the checkpoint whose weights it loads, or None; raises InputError
                                            for an unknown name or argument
    example(model) -> (args, kwargs) | None example inputs of a built model, drawn from a fixed seed, batch size 2
    save(model, folder, name)               writes the folder that the library's `from_pretrained` reads, if it has one

May import `capturing`, `ir` and below.
"""

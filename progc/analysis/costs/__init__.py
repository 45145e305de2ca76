"""The cost of a training step: counted from the graph, and predicted in seconds from the counts.

Neither runs the network: no memory is allocated, and parameters may be deferred (docs/adr/0015-costs.md). May import
`ir` and below.
"""

"""One server of several processes.

clients --HTTP--> worker 1 --+
                  worker 2 --+--frames over a Unix socket--> engine process (models, queues, metrics)
                  ...      --+
                     ^                                          ^
                     +----- supervisor: starts, replaces, ends -+
"""

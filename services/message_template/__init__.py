"""Campaign messages from templates and a recipient's attributes, in a sandbox. Pure: no I/O, no clock, no gRPC.

`sandbox` is the language that templates may use and its limits; `message` compiles and renders a whole message.
"""

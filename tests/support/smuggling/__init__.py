"""Request smuggling: what is sent, real upstreams that write down what reaches them, and a strict reader of answers."""

"""The command `runhist`: one module a command, imported only when it runs."""

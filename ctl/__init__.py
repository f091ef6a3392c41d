"""`cloudhubctl`: a command line for people who look after a hub (docs/cloudhubctl.md).

`app` is the command line, `looking` and `changing` hold its commands, `hub` the calls, `tables` what is
shown.
"""

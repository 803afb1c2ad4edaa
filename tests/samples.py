NETSTAT_BSD = """\
Active Internet connections (including servers)
Proto Recv-Q Send-Q  Local Address          Foreign Address        (state)
tcp46      0      0  *.8000                 *.*                    LISTEN
tcp6       0      0  *.8001                 *.*                    LISTEN
tcp4       0      0  *.8002                 *.*                    LISTEN
tcp46      0      0  *.8003                 *.*                    LISTEN
tcp6       0      0  *.8003                 *.*                    LISTEN
tcp46      0      0  *.8004                 10.0.0.1.5             ESTABLISHED
udp46      0      0  *.8005                 *.*
"""

"""What tools print, written after their own output, with rows that must not match."""

# Linux: ss, netstat of net-tools and of busybox, /proc/net/tcp

SS = """\
LISTEN 0      128        127.0.0.1:8000       0.0.0.0:*    users:(("a",pid=51,fd=3),("a",pid=6,fd=3)) uid:1000 ino:73
LISTEN 0      128            [::1]:8000          [::]:*    users:(("a\\",pid=1,fd=1",pid=52,fd=4)) ino:74 v6only:1 <->
LISTEN 0      128                *:8000             *:*    users:(("node",pid=53,fd=4)) ino:75 sk:9 v6only:0 <->
LISTEN 0      128                *:18000            *:*    users:(("python3",pid=54,fd=3)) ino:76
ESTAB  0      0          127.0.0.1:8000     127.0.0.1:5201 users:(("curl",pid=55,fd=3))
"""
NET_TOOLS = """\
Active Internet connections (only servers)
Proto Recv-Q Send-Q Local Address           Foreign Address         State       User       Inode      PID/Program name
tcp        0      0 127.0.0.1:8000          0.0.0.0:*               LISTEN      1000       73         51/nginx: master
tcp6       0      0 :::8000                 :::*                    LISTEN      0          74         -
tcp        0      0 127.0.0.1:18000         0.0.0.0:*               LISTEN      0          75         53/python3
tcp        0      0 127.0.0.1:8000          127.0.0.1:5201          ESTABLISHED 0          76         54/curl
udp        0      0 127.0.0.1:8000          0.0.0.0:*                           0          77         55/syslogd
"""
BUSYBOX = """\
Active Internet connections (only servers)
Proto Recv-Q Send-Q Local Address           Foreign Address         State       PID/Program name
tcp        0      0 127.0.0.1:8000          0.0.0.0:*               LISTEN      12/python3
tcp        0      0 :::8000                 :::*                    LISTEN      -
tcp        0      0 127.0.0.1:8000          127.0.0.1:5201          ESTABLISHED 13/curl
"""
PROC_NET = """\
  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 0100007F:1F40 00000000:0000 0A 00000000:00000000 00:00000000 00000000  1000        0 73 1 0000000000000000 100 0
   1: 0100007F:4650 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 74 1 0000000000000000 100 0
   2: 0100007F:1F40 0100007F:1451 01 00000000:00000000 00:00000000 00000000     0        0 75 1 0000000000000000 20 4
"""

# macOS: lsof -F pftdPnT prints one field a line, the fields of each process and descriptor one after the other.

LSOF_HELD = """\
p38146 f5 d0x2f1c tIPv4 PTCP n*:8000 TST=LISTEN TQR=0 TQS=0
f9 tIPv4 PTCP n127.0.0.1:8000->127.0.0.1:52011 TST=ESTABLISHED
p501 f31 tIPv4 PTCP n127.0.0.1:52011->127.0.0.1:8000 TST=ESTABLISHED
p777 f4 tIPv4 PUDP n*:8000
p778 f4 tIPv6 PTCP n[::1]:18000 TST=LISTEN
p779 f6 tIPv4 PTCP n*:8000 TST=SYN_SENT
p1 f8 tIPv4 PTCP n*:111 TST=LISTEN
""".replace(" ", "\n")
LSOF_BOUND = "p38146 f7 tIPv4 PTCP n*:8000 TST=CLOSED TQR=0 TQS=0 ".replace(" ", "\n")
PS = """\
    1     0     1 Ss   ??       root  Mon Nov 23 08:00:00 2026 /sbin/launchd
  700     1   700 S    ??       alice Mon Nov 23 09:00:00 2026 /Applications/Terminal.app/Contents/MacOS/Terminal
  701   700   701 Ss   ttys001  alice Mon Nov 23 09:00:01 2026 -zsh
{me}   701 {me} S+   ttys001  alice Mon Nov 23 10:00:00 2026 python port_manager.py free 8000
38146   701 38146 S    ttys001  alice Mon Nov 23 09:30:00 2026 /opt/homebrew/bin/python3 -m uvicorn src.main:app
  501     1   501 S    ??       alice Mon Nov 23 08:10:00 2026 /Applications/Firefox.app/Contents/MacOS/firefox
  333     1   333 Ss   ??       alice Mon Nov 23 08:11:00 2026 /System/Library/CoreServices/\
ControlCenter.app/Contents/MacOS/ControlCenter
  555     1   555 S    ??       alice Mon Nov 23 08:12:00 2026 /Applications/OrbStack.app/Contents/Frameworks/\
OrbStack Helper.app/Contents/MacOS/OrbStack Helper vmgr
  812     1   812 Ss   ??       alice Mon Nov 23 08:12:00 2026 /opt/homebrew/bin/postgres -D /opt/homebrew/var
  813     1   813 Ss   ??       alice Mon Nov 23 08:12:00 2026 /opt/homebrew/bin/other
  814     1   814 S    ??       alice Mon Nov 23 08:12:00 2026 /Applications/Docker.app/Contents/MacOS/\
com.docker.backend run
  815     1   815 S    ??       alice Mon Nov 23 08:12:00 2026 /usr/bin/python3 /opt/homebrew/bin/supervisord -n
  816   815   815 S    ??       alice Mon Nov 23 08:12:00 2026 /opt/homebrew/bin/node api.js
  817     1   817 S    ??       alice Mon Nov 23 08:12:00 2026 ssh: /Users/alice/.colima/ssh.sock [mux]
  818     1   818 Ss   ??       alice Mon Nov 23 08:12:00 2026 /bin/sh /opt/homebrew/bin/mysqld_safe
  819   818   818 S    ??       alice Mon Nov 23 08:12:01 2026 /opt/homebrew/bin/mysqld --port=8000
  820   700 38146 S    ??       alice Mon Nov 23 09:30:00 2026 /usr/bin/python3 started/without/a/shell.py
  666   701 38146 Z+   ttys001  alice Mon Nov 23 09:31:00 2026 (python3)
garbage
"""
COMM = """\
  333 /System/Library/CoreServices/ControlCenter.app/Contents/MacOS/ControlCenter
  555 /Applications/OrbStack.app/Contents/Frameworks/OrbStack Helper.app/Contents/MacOS/OrbStack Helper
  817 ssh: /Users/alice/.colima/ssh.sock [mux]
38146 /opt/homebrew/bin/python3
"""
LAUNCHCTL = """\
PID\tStatus\tLabel
-\t0\tcom.apple.SafariHistoryServiceAgent
38146\t0
812\t0\thomebrew.mxcl.postgresql@14
813\t0\torg.x y\x1b[2J
814\t0\tapplication.com.docker.docker.1.2
501\t0\tapplication.org.mozilla.firefox.123.456
700\t0\tapplication.com.apple.Terminal.1.2
"""
LAUNCHCTL_PRINT = "user/501 = {\n\tservices = {\n\t\t  0   - \tx\n\t\t   818   - \thomebrew.mxcl.mysql\n\t}\n}\n"
NETSTAT_BSD = """\
Active Internet connections (including servers)
Proto Recv-Q Send-Q  Local Address          Foreign Address        (state)
tcp4       0      0  *.8000                 *.*                    LISTEN
tcp6       0      0  *.8001                 *.*                    LISTEN
tcp4       0      0  127.0.0.1.8002         *.*                    LISTEN
tcp46      0      0  *.8003                 *.*                    LISTEN
tcp6       0      0  *.8003                 *.*                    LISTEN
tcp46      0      0  *.8004                 10.0.0.1.5             ESTABLISHED
udp46      0      0  *.8005                 *.*
tcp46      0      0  *.8006                 *.*                    LISTEN
tcp46      0      0  *.8007                 *.*                    LISTEN
tcp4       0      0  *.8007                 *.*                    LISTEN
"""

# FreeBSD

SOCKSTAT = """\
USER     COMMAND    PID   FD  PROTO  LOCAL ADDRESS         FOREIGN ADDRESS
alice    python3.11 38146 3   tcp4   127.0.0.1:8000        *:*
alice    python3.11 38146 4   tcp6   ::1:8000              *:*
alice    my tcp4 x  38147 3   tcp46  *:8000                *:*
alice    curl       501   5   tcp4   127.0.0.1:52011       127.0.0.1:8000
alice    curl       501   7   tcp6   fe80::1%lo0:52013     fe80::1%lo0:8000
root     nginx      812   6   tcp6   *:8000                *:*
root     syslogd    400   6   udp4   *:8000                *:*
?        ?          ?     ?   tcp4   127.0.0.1:8000        *:*
alice    python3.11 900   3   tcp4   127.0.0.1:18000       *:*
"""
PS_OF_FREEBSD = """\
    0     0     0 DLs  -      root             Mon Nov 23 08:00:00 2026     [kernel]
   13     0    13 DL   -      root             Mon Nov 99 08:00:00 2026     [no such day]
   12     0    12 WL   -      root             -                            [intr]
    1     0     1 ILs  -      root             Mon Nov 23 08:00:00 2026     /sbin/init
  701     1   701 Is   pts/0  alice            Mon Nov 23 09:00:01 2026     -sh (sh)
 {me}   701 {me} S+   pts/0  alice            Mon Nov 23 10:00:00 2026     python port_manager.py free 8000
38146   701 38146 S    pts/0  alice            Mon Nov 23 09:30:00 2026     python3.11 -m uvicorn main:app
38147     1 38147 Ss   -      alice            Mon Nov 23 09:30:00 2026     daemon: my tcp4 x[38147] (daemon)
"""

# Windows: netstat -ano, with the word for LISTENING of English and Chinese, of German, of French

STATES = ("LISTENING", "ABHÖREN", "À L'ÉCOUTE")
NETSTAT_ANO = """
活动连接

  协议  本地地址          外部地址        状态           PID
  TCP    127.0.0.1:8000         0.0.0.0:0              {state}       38144
  TCP    0.0.0.0:80             0.0.0.0:0              {state}       4
  TCP    127.0.0.1:52011        127.0.0.1:8000         ESTABLISHED     9120
  TCP    127.0.0.1:52012        127.0.0.1:8000         TIME_WAIT       0
  TCP    0.0.0.0:8100           0.0.0.0:0              {state}       0
  TCP    [::]:8000              [::]:0                 {state}       38144
  TCP    [fe80::1%12]:8001      [::]:0                 {state}       38148
  TCP    [::1]:52013            [::1]:8000             CLOSE_WAIT      9120
  UDP    0.0.0.0:8000           *:*                                    7788
"""


def netstat_ano(state="LISTENING"):
    return NETSTAT_ANO.format(state=state).replace("\n", "\r\n")

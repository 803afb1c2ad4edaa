/* Stands in for netstat.exe under Wine, whose own one knows no listeners.
 *
 * C:\netstat.rows has a line for each row: a process, as its PID and the time of its creation, a tab, and the row as
 * `netstat -ano` would print it. The rows whose process lives are printed. Without such a file the status is 1.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <windows.h>

static int lives(DWORD pid, unsigned long long created)
{
    FILETIME times[4];
    HANDLE process = OpenProcess(SYNCHRONIZE | PROCESS_QUERY_LIMITED_INFORMATION, FALSE, pid);
    int found = process && WaitForSingleObject(process, 0) == WAIT_TIMEOUT &&
                GetProcessTimes(process, &times[0], &times[1], &times[2], &times[3]) &&
                ((unsigned long long)times[0].dwHighDateTime << 32 | times[0].dwLowDateTime) == created;

    if (process)
        CloseHandle(process);
    return found;
}

int main(void)
{
    char line[512];
    FILE *rows = fopen("C:\\netstat.rows", "r");

    if (!rows)
        return 1;
    printf("\nAktive Verbindungen\n\n  Proto  Lokale Adresse         Remoteadresse          Status           PID\n");
    while (fgets(line, sizeof line, rows)) {
        char *created, *row = strchr(line, '\t');
        DWORD pid = strtoul(line, &created, 10);

        if (row && lives(pid, strtoull(created, NULL, 10)))
            fputs(row + 1, stdout);
    }
    fclose(rows);
    return 0;
}

/* Stands in for netstat.exe under Wine, whose own one knows no listeners.
 *
 * C:\netstat.rows has a line for each row: the PID of a process, a tab, and the row as `netstat -ano` would print it.
 * The rows whose process is alive are printed. It ends with status 1 where there is no such file.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <windows.h>

static int lives(DWORD pid)
{
    HANDLE process = OpenProcess(SYNCHRONIZE, FALSE, pid);
    int found = process && WaitForSingleObject(process, 0) == WAIT_TIMEOUT;

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
        char *row = strchr(line, '\t');

        if (row && lives(strtoul(line, NULL, 10)))
            fputs(row + 1, stdout);
    }
    fclose(rows);
    return 0;
}
